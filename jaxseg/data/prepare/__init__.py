"""Writing data sets as records, and converting official releases."""
