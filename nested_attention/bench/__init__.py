"""What nested attention costs, next to what it could cost and what others do: `nested-attention bench`."""
