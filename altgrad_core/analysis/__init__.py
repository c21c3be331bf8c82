"""Reading run folders: metrics, comparisons, reports. Nothing here imports torch or trains anything."""
