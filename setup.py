from glob import glob

from setuptools import find_packages, setup

NAME = "dtp_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=find_packages(exclude=["test", "test.*", "benchmarks"]),
    package_data={NAME: ["py.typed", "models/tabletop_weights/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.py")),
        (f"share/{NAME}/config", glob("config/*.*")),
        (f"share/{NAME}/config/models", glob("config/models/*.yaml")),
        (f"share/{NAME}/config/robots", glob("config/robots/*.yaml")),
        (f"share/{NAME}/config/study/benchmarks", glob("config/study/benchmarks/*.yaml")),
        (f"share/{NAME}/config/study/servers", glob("config/study/servers/*.yaml")),
        (f"share/{NAME}/config/study/statistics/nora_libero", glob("config/study/statistics/nora_libero/*")),
    ],
    python_requires=">=3.10",
    zip_safe=False,
    maintainer="dtp_ros maintainers",
    maintainer_email="dtp-ros@users.noreply.github.com",
    description="Vision-language-action models with Distracting Token Pruning on WidowX arms",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "policy_node = dtp_ros.ros.policy_node:main",
            "widowx_node = dtp_ros.ros.widowx_node:main",
            "sim_node = dtp_ros.ros.sim_node:main",
            "expert_node = dtp_ros.ros.expert_node:main",
            "dtp_study = dtp_ros.study.main:main",
        ]
    },
)
