"""Which shortcuts work: scaled, gated, convolutional, dropped (He et al. 2016, table 1, figure 3).

Trains a network with each kind of shortcut in every block (arXiv:1603.05027, section 3), with the
same recipe and several seeds, and compares their test errors with that of the identity. The paper
claims that none is better, and that only the shortcut-only gate with bias -6 is close to it.
"""

from resflax.study.variants import ORIGINAL, Claim, Variant, VariantStudy

# The paper's test errors of ResNet-110; "fail" is above 20 %.
VARIANTS: dict[str, Variant] = {
    ORIGINAL: Variant({}, "6.61"),
    "no shortcut": Variant({"shortcut": "none"}, "fail"),
    "0.5 shortcut": Variant({"gate": "scaled_shortcut"}, "fail"),
    "0.5 shortcut, 0.5 branch": Variant({"gate": "scaled"}, "12.35"),
    "exclusive gate, bias 0": Variant({"gate": "exclusive_open"}, "fail"),
    "exclusive gate, bias -6": Variant({"gate": "exclusive"}, "8.70"),
    "shortcut-only gate, bias 0": Variant({"gate": "shortcut_only_open"}, "12.86"),
    "shortcut-only gate, bias -6": Variant({"gate": "shortcut_only"}, "6.91"),
    "1x1 convolution": Variant({"gate": "conv"}, "12.22"),
    "dropout 0.5": Variant({"gate": "dropout"}, "fail"),
}
# Section 3: all of them hamper the optimization, except the gate that is nearly the identity.
CLAIMS: tuple[Claim, ...] = tuple(
    Claim(label, "close" if label == "shortcut-only gate, bias -6" else "higher")
    for label in VARIANTS
    if label != ORIGINAL
)
STUDY = VariantStudy("shortcuts2016", VARIANTS, CLAIMS, depth=20)
add_arguments, run = STUDY.add_arguments, STUDY.run
