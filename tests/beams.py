"""What beam searches are given, from one list of arguments."""

from npllama.decoding.beam import BeamRules
from npllama.decoding.common import Job, unprocessed


def asked(model, prompt, stop, most, num_beams, process=unprocessed, rng=None, **rules):
    """A job and the rules of a search; `eos` are end tokens, which are counted."""
    n_eos = len(rules.pop("eos", ()))
    job = Job(model, prompt, most, stop, process, rng)
    return job, BeamRules(num_beams, n_eos=n_eos, **rules)
