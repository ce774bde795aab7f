"""The path of a record, a module per stage.

    Kafka records -> decode -> normalise -> state -> batch -> infer -> decide -> publish -> checkpoint

`pipeline.py` shows it on one screen; `app.py` puts it into a Faust agent.
"""
