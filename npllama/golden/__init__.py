"""Chapter 17: every number on the way, and where another's go wrong.

The author of a LLaMA backend asks three questions.  What should every tensor be?
Where do mine first differ?  And is that more than rounding?

    `precision`  what a number becomes in fewer bits
    `plain`      operations in low precision, sums in several orders
    `emulation`  the model in low precision, in all the ways of right backends
    `distance`   how far two tensors are apart, and how much of that is chance
    `floor`      how wrong a right backend is: the noise floor of every tensor
    `trace`      a file that holds every tensor of a run
    `record`     run the model and write that file
    `streamed`   the same for models larger than memory
    `workers`    processes that end with the one that started them
    `prompts`    the same for many prompts, on many machines
    `measures`   how a tensor differs, in numbers
    `compare`    walk two such files side by side
    `scene`      the first tensor outside, and what it was made from
    `wrong`      the model with parts that can be exchanged
    `slips`      the usual mistakes in one part of the model, and the table of names
    `faults`     and mistakes in the weights
    `suspects`   what a tensor would be with each mistake
    `signs`      what the numbers themselves show
    `likeness`   how much of the difference a suspicion leaves
    `diagnose`   which of them explains the difference
    `report`     the verdict as text and JSON
    `page`       the verdict as a page with a plot
    `cases`, `ops`  single operations, for the author of a kernel
"""
