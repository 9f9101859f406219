"""The pure floor: what a request is, who may make it, what it may cost.

Nothing here does I/O, reads a clock or draws a random number: `now`, ids and randomness are arguments. Everything
above (admission, edge) takes time and leans on these values; nothing here knows that gRPC, Redis or PostgreSQL exist.
"""
