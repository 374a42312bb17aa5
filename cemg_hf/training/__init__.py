"""What each stage trains, and the one loop around Accelerate that trains it."""
