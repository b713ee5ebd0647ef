"""Chapter 20: many at once.

`pages`      memory for keys and values, dealt out in pieces of one size
`packed`     one pass over pieces of several texts
`blocks`     which text holds which page
`beams`      beam search on pages
`scheduler`  which text gets how many positions in a step
`writing`    a text while the engine writes it
`requests`   requests to the engine
`engine`     requests in, tokens out
`collect`    from events to whole texts
`results`    a file of results that outlives the run that writes it
`prompts`    many prompts, each as if it were alone
`saved`      a cache that outlives its request
`fields`     what a field of a request means
`offered`    what a server offers: a model, its words, its ends
`protocol`   a client's request
`answers`    the server's answers
`metrics`    a server's metrics, for Prometheus
`desk`       the thread that owns the model
`clients`    who has come, and who has left
`http`       the routes
`dawdlers`   clients that never say what they want
`trace`      traffic: who comes when, with how long a text
`latency`    how long people wait
`buddy`      memory in blocks of powers of two
`waste`      what a page saves
`sharing`    what sharing saves
`simulate`   how long it takes, by three ways to share a machine
`tables`     the tables of README.md, worked out
`plot`       the same, drawn
"""
