# The operator, the admission webhook, and the library for pods that get it by an init container. From the repository's root:
#   docker build -f deploy/images/operator.Dockerfile -t rendezvous-operator:0.1.0 .
# BASE: any image with Python >= 3.11 and pip, such as the default.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
# Dependencies first: a change of our code does not fetch them again. Nothing is installed whose hash the locks lack (`make lock`), and
# no package runs code to build itself. No pip in what runs; its modules are compiled here, since the root will be read-only.
COPY deploy/images/operator-requirements.txt deploy/images/build-requirements.txt deploy/images/sbom.py /deps/
RUN python3 -m venv --without-pip /opt/venv \
 && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --only-binary :all: --no-deps --require-hashes -r /deps/operator-requirements.txt \
 && python3 -m pip install --no-cache-dir --only-binary :all: --no-deps --require-hashes -r /deps/build-requirements.txt
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN python3 -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels /src \
 && python3 -m pip --python /opt/venv/bin/python install --no-deps /wheels/*.whl \
 && /opt/venv/bin/python -I /deps/sbom.py > /deps/sbom.cdx.json
# As Python finds it on PYTHONPATH in any image: no program, nothing compiled, readable for everyone.
RUN python3 -m pip install --no-deps --no-compile --target /opt/rdzv /wheels/*.whl \
 && rm -rf /opt/rdzv/bin \
 && chmod -R u=rwX,go=rX /opt/rdzv

FROM ${BASE}
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# kopf asks for its user's name, and a uid has none here.
ENV LOGNAME=rendezvous-operator
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/rdzv /opt/rdzv
COPY --from=build /deps/sbom.cdx.json /app/sbom.cdx.json
COPY operator /app/operator
USER 65532:65532
WORKDIR /app
CMD ["kopf", "run", "/app/operator/main.py", "--all-namespaces", "--standalone", "--liveness=http://0.0.0.0:8080/healthz"]
