"""`onebase plan`: reads a verb's configuration as a planned run, and prints memory, time, price and laws."""
