"""Papers' claims, measured again: ``nuqsgd.py``, ``alq.py``, ``qsparse.py`` and ``powersgd.py`` say what each claims.

A reproduction is a list of claims (``claims.py``) over evidence (``evidence.py``): training runs (``studies.py``, each
a comparison folder like those of ``thriftgrad compare``, qualities by ``calibration.py``) and measurements without
training (``probes.py`` on the gradients of ``snapshots.py``, ``synthetic.py``, ``timing.py``, ``approximation.py``,
``quadratics.py``). ``reproduction.py`` does the work in processes (``pool.py``), ``page.py`` shows the result.
"""
