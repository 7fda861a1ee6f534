"""AugMix: chains of operations, blended with each other and with the image.

Hendrycks et al. 2020 (arXiv:1912.02781), section 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from resflax.data.augment.levels import AUGMIX, INFINITY
from resflax.data.augment.pixels import round_to_dtype
from resflax.data.augment.rand import RandPolicy, apply_policy

MAX_DEPTH = 3


class AugMix(NamedTuple):
    """The settings of AugMix.

    Attributes:
      chain: the operations; `layers` is the largest number of them in a chain.
      width: number of chains.
      is_random_depth: whether chains have 1 to `chain.layers` operations; else all of them.
      alpha: of the Dirichlet distribution of the chains' weights and of the Beta distribution of
        the weight of their blend against the image.
    """

    chain: RandPolicy = RandPolicy(AUGMIX, layers=MAX_DEPTH, magnitudes=(3.0,), std=INFINITY)
    width: int = 3
    is_random_depth: bool = True
    alpha: float = 1.0


class Mixture(NamedTuple):
    """The random numbers of one image.

    Attributes:
      weights: float32 `(width,)`, of the chains, which add up to 1.
      share: float32 scalar, of the blend of the chains; the rest is the image.
      depths: int32 `(width,)`, number of operations of each chain.
    """

    weights: Float[Array, " width"]
    share: Float[Array, ""]
    depths: Int[Array, " width"]


def sample_mixture(key: Key[Array, ""], settings: AugMix) -> Mixture:
    """Samples weights, share and depths."""
    weight_key, share_key, depth_key = jax.random.split(key, 3)
    alpha, width, layers = settings.alpha, settings.width, settings.chain.layers
    alphas = jnp.full(width, alpha, jnp.float32)
    weights = jax.random.dirichlet(weight_key, alphas, dtype=jnp.float32)
    share = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)
    low = 1 if settings.is_random_depth else layers
    depths = jax.random.randint(depth_key, (width,), low, layers + 1, jnp.int32)
    return Mixture(weights, share, depths)


def blend_chains(
    image: UInt8[Array, "h w c"], chains: UInt8[Array, "width h w c"], mixture: Mixture
) -> UInt8[Array, "h w c"]:
    """Returns `(1 - share) * image + share * (weights of the chains)`, rounded."""
    mixed = jnp.einsum("k,khwc->hwc", mixture.weights, chains.astype(jnp.float32))
    own = image.astype(jnp.float32)
    return round_to_dtype(own + mixture.share * (mixed - own), image.dtype)


def augmix(
    key: Key[Array, ""], image: UInt8[Array, "h w c"], *, settings: AugMix
) -> UInt8[Array, "h w c"]:
    """Applies several chains of operations to one image, and blends them with it."""
    mixture_key, chain_key = jax.random.split(key)
    mixture = sample_mixture(mixture_key, settings)

    def chain(key: Array, count: Array) -> Array:
        return apply_policy(key, image, policy=settings.chain, count=count)

    keys = jax.random.split(chain_key, settings.width)
    return blend_chains(image, jax.vmap(chain)(keys, mixture.depths), mixture)
