"""Programs that hold memory of every kind, and the test-side classes that start and describe them."""
