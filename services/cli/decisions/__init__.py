"""`arb decisions`, `arb decision` and `arb replay decisions`: what was decided, why, and whether it comes out again.

`finding` reads messages out of Kafka or files, `listing` is the table, `words` says a decision step by step, `replay`
judges the records again, `show` prints, `commands` are the commands.
"""
