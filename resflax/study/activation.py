"""Where norms and activations belong in a block (He et al. 2016, table 2, figure 4).

Trains a network with each order of batch norm and ReLU (arXiv:1603.05027, section 4), with the same
recipe and several seeds, and compares their test errors with that of the original order. The paper
claims that only full pre-activation is better.
"""

from resflax.study.variants import ORIGINAL, Claim, Variant, VariantStudy

# The paper's test errors of ResNet-110.
VARIANTS: dict[str, Variant] = {
    ORIGINAL: Variant({}, "6.61"),
    "BN after addition": Variant({"order": "norm_after_add"}, "8.17"),
    "ReLU before addition": Variant({"order": "act_before_add"}, "7.84"),
    "ReLU-only pre-activation": Variant({"order": "act_only_preact"}, "6.71"),
    "full pre-activation": Variant({"order": "preact"}, "6.37"),
}
CLAIMS: tuple[Claim, ...] = (
    Claim("BN after addition", "higher"),
    Claim("ReLU before addition", "higher"),
    Claim("ReLU-only pre-activation", "close"),
    Claim("full pre-activation", "lower"),
)
STUDY = VariantStudy("activation", VARIANTS, CLAIMS, depth=32)
add_arguments, run = STUDY.add_arguments, STUDY.run
