"""What a stage costs: bytes and seconds, as pure functions of layers, a device and a batch.

Nothing here knows an engine. ``sharding`` says what tensor parallelism leaves on a rank, ``memory`` what
that weighs, ``rates`` what a device achieves, ``timing`` how long a layer takes, ``communication`` what
moving activations costs, and ``pipeline`` what the stages make of it together.
"""
