"""Part III: what it costs.

Every product of the book passes through one function, so its cost can be counted
while it runs, and predicted before it does.

    `counter`   counts operations and elements moved, of whatever runs
    `formulas`  the same numbers in closed form, for models that fit nowhere
    `textbook`  the short forms that are quoted, and where they come from
"""
