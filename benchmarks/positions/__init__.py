"""How much of the position-steps that halting saves arrives in seconds?"""
