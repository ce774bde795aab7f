"""What crosses a boundary: messages, the feature table, the patient window, the model config.

Imported by `engines` and `worker`; imports neither.

    features.py      the ordered feature table: code, unit, plausible range
    units.py         (value, UCUM unit) -> value in a feature's canonical unit
    window.py        hourly bins and the rows that models read from them
    messages.py      records on the topics: vitals, alert, score, dead letter
    latch.py         what deciding remembers of a patient
    stored.py        the window and the latch as they stand in Redis
    model_config.py  a model folder's config.json, alert policy included
    model_card.py    a model folder's model_card.json: the source attributes of HTI-1
    news2.py         NEWS2, qSOFA and MEWS as intervals over what is known
    json_schema.py   writes the JSON Schema files in json/
"""
