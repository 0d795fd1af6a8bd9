"""`ulps` placeholder."""

from petlpack.coding import pco
from petlpack.tensors.ordered import add_ulps, ulps_between


class Ulps:
    id = "ulps"

    def encode(self, bits, array, level):
        if array.given is None:
            return None
        u = ulps_between(bits, array.given, array.dtype)
        s = u.view(f"<i{u.itemsize}")
        z = ((s << 1) ^ (s >> (8 * u.itemsize - 1))).view(u.dtype)
        return pco.compress(z)

    def decode(self, data, array):
        z = pco.decompress(data, array.count, array.dtype.bits)
        one = z.dtype.type(1)
        u = (z >> one) ^ (-(z & one).view(f"<i{z.itemsize}")).view(z.dtype)
        return add_ulps(array.given, u, array.dtype)
