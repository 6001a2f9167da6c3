"""FairScale: the ``balance`` of ``Pipe``, which is torchgpipe's."""

from __future__ import annotations

from pgplan.engines.torchgpipe import TorchGPipe


class FairScale(TorchGPipe):
    """Write the construction of a ``Pipe``; options as for every list of items."""

    name = "fairscale"
    title = "FairScale"
    default_version = "0.4.13"
    writes = "Python, a `Pipe`"
    checked = "0.4.13: a Pipe on CPUs"
    module, wrapper = "fairscale.nn.pipe", "Pipe"
