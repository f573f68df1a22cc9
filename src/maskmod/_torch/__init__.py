"""The one room that holds private torch names and works around torch's faults; it knows no mask."""
