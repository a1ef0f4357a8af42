"""`arb dlq`: what could not be processed, and sending it again.

A dead letter is known by where it lies, `TOPIC/PARTITION/OFFSET`. That it was sent again stands on the same dead-letter
topic, as a marker: a record without a value whose key is the letter's id. Before a letter is sent a run writes
`claimed` and reads the topic to its end; of two runs that claim one attempt, the first marker in the log wins and the
other leaves the letter alone. After Kafka took it, `sent` is written. A claim without it is a run that died in between:
whether the letter went out is not known, so nothing is sent again unless `--again` says so.

Kafka's transactions would make it one step, but their markers take offsets that our readers count on.
"""
