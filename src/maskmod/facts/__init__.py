"""What is true of a mask that was read: free functions, each exact or silent."""
