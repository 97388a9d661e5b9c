"""InSPO and what it is compared with, by what sets them apart.

method            in turns   others' newest policies   entropy
inspo             yes        yes                       yes
simultaneous      no         yes                       yes
awr               no         yes                       no        advantage-weighted regression
awr_independent   no         no: as in the data        no
bc                no learning: the policies of the data, each agent's marginal
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """How agents learn.

    Attributes:
        sequential: one after the other, each from the newest policies of those before it.
        resampled: values are weighted by how the others act now; otherwise by how they acted in the data.
        entropy: whether beta counts; it is 0 otherwise.
        learns: whether anything is learnt after behaviour cloning.
    """

    sequential: bool = False
    resampled: bool = True
    entropy: bool = False
    learns: bool = True


METHODS = {
    "inspo": Method(sequential=True, entropy=True),
    "simultaneous": Method(entropy=True),
    "awr": Method(),
    "awr_independent": Method(resampled=False),
    "bc": Method(learns=False),
}
