"""A whole network in evaluation mode by oneDNN, compiled on first use."""

from resflax.kernels.network.binding import Network as Network
from resflax.kernels.network.binding import unavailable_reason as unavailable_reason
