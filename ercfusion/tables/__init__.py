"""Tables computed from run records, and the files written from them."""
