"""The compiled loop, without which NumPy draws; everything else is in setup.cfg."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fcp_privacy._loops",
            sources=["src/fcp_privacy/loops.c"],
            # Fused multiply-adds would decide otherwise than NumPy.
            extra_compile_args=["-O3", "-std=c11", "-ffp-contract=off", "-Wall"],
            optional=True,
        )
    ]
)
