"""The compiled loops, without which NumPy adds; everything else is in setup.cfg."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fcp_secagg._loops",
            sources=["src/fcp_secagg/loops.c"],
            extra_compile_args=["-O3", "-std=c11", "-Wall"],
            optional=True,
        )
    ]
)
