"""Reading a model directory: its JSON and the headers of its weights, as data that strangers wrote."""
