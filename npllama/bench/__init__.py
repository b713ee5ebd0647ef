"""How fast npllama is, beside the floor below it and its peers: ``npllama bench``.

Every program that is timed lives in a process of its own, so that no two thread
pools meet.  `worker`, `programs` and `attention` need nothing but NumPy and the program
that is timed, so that a peer may live in another Python.

    `worker`        the inside of a timed process: requests in, answers out
    `processes`     its outside: start it, ask it, end it
    `random_model`  models of random weights, in any size
    `programs`      npllama and its peers on a whole model, and the floor
    `attention`     attention alone
    `batches`       several texts at once
    `serving`       many requests at once
    `decoding`      what chance costs and guesses save
    `report`        the answers as a table
    `roofline`      what the roofline predicts of the same
    `cells`         batches, long contexts, beams, start-up: one cell after the other
    `counting`      what counting FLOPs costs
    `measure`       all of it, as it was asked for
"""
