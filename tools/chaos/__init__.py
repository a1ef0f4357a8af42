"""The chaos suite: three real brokers, the real services as processes, and what goes wrong with them (docs/chaos.md).

stage.py      brokers, services, and whoever starts again what ends
watch.py      what a reader sees meanwhile
ledger.py     what is on the topics afterwards, against the simulator's own log      pure
machine.py    a small disk, a network of its own: made and removed here
scenarios.py  what is broken, and what must come of it
run.py        one scenario from beginning to end
report.py     the tables and the JSON
"""
