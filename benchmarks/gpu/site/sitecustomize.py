"""What fairchem-core 1.10 imports and newer packages no longer have; fairchem stays as it is."""

try:
    import scipy.special
except ImportError:
    pass
else:
    if not hasattr(scipy.special, "sph_harm"):  # scipy 1.17 removed it; the new name takes the arguments in another order

        def sph_harm(m, n, theta, phi):
            """Spherical harmonics Y_nm, theta the azimuth and phi the polar angle, as scipy < 1.17 had them."""
            return scipy.special.sph_harm_y(n, m, phi, theta)

        scipy.special.sph_harm = sph_harm
