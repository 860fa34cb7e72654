# The library alone, for pods that mount it as an image volume: the very files that the operator's image holds. Build that one first.
#   docker build -f deploy/images/library.Dockerfile -t rendezvous-library:0.1.0 .
ARG OPERATOR=rendezvous-operator:0.1.0

FROM ${OPERATOR} AS operator

FROM scratch
COPY --from=operator /opt/rdzv/ /
