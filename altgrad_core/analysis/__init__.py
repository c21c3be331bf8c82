"""Reading run folders: metrics, comparisons, reports. Importing them imports no torch; nothing here trains."""
