"""From noise to samples: noise schedules, samplers as tables of numbers, one scan to run them."""
