"""Which bits each layer gets: what a model loses where, and the best plan for a budget."""
