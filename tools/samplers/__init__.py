"""Samplers as the conformance kit wants them: adapters, one library per module.

Each module has a `factory()` that says what the library offers and by which
conventions:

    pytest --pyargs npllama.conformance --sampler samplers.transformers5:factory
"""
