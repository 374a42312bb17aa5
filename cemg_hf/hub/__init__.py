"""What goes to the Hub: the model folder as it is published, and its card."""
