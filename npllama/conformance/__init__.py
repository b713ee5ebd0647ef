"""Chapter 19: all checks of `npllama.testing` on one package, and a report.

    pytest --pyargs npllama.conformance --sampler mypackage.mymodule:factory

`factory` takes nothing and returns a dictionary: the names of strategies, and for each
a function, called as ``help(npllama.testing.check_...)`` says.  Where the package
follows another convention than transformers, it says so beside the function; a list
offers one strategy in several ways:

    def factory():
        return {
            "top_k": my_top_k,
            "top_p": (my_top_p, {"ties": "lowest"}),
            "typical": [
                (my_typical, {}),
                (my_other_typical, {"convention": "llama.cpp"}),
            ],
        }

The report lists the laws that hold and those that are broken.  For a broken law it
shows the smallest failing case, and for a strategy the conventions under which the
sampler would be right, if there are any.  ``help(npllama.testing)`` lists all
strategies.  ``--sampler-report FILE`` writes the same as JSON, ``--sampler-examples N``
tries N cases of every law.  pytest ends with 0 if all laws hold, with 1 if one is
broken, with 4 if there is no such factory.

The same without pytest is ``print(examine(factory()).text())``.

`offers`   what a package says it has
`hints`    whether a broken sampler follows another convention
`report`   the laws one by one, in words and as JSON
`session`  the same as tests of pytest, which `test_laws` holds
"""

from npllama.conformance.offers import BadSampler, Offer, load, offers_of
from npllama.conformance.report import Report, Result, examine

__all__ = [
    "BadSampler",
    "Offer",
    "Report",
    "Result",
    "examine",
    "load",
    "offers_of",
]
