"""How well subjects are kept and prompts followed, measured as the field does: on pictures of any model.

`metrics.py` has the published formulas, `scorers.py` and `recognisers.py` the models that see the pictures,
`run.py` what `nested-attention evaluate` does, `preferences.py` the blind comparison by people.
"""
