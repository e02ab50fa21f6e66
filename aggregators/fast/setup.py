"""The compiled module; everything else is in setup.cfg."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fcp_fast._kernels",
            sources=["src/fcp_fast/kernels.c", "src/fcp_fast/crc32c.c"],
            depends=["src/fcp_fast/crc32c.h"],
            # Fused multiply-adds would give other numbers than NumPy.
            extra_compile_args=["-O3", "-std=c11", "-ffp-contract=off", "-Wall"],
        )
    ]
)
