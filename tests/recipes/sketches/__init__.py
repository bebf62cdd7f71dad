"""Graphs of twelve unlike methods: sketches of later recipes, which show that the graph language can say them."""
