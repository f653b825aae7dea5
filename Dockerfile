# Offline inference on a CPU. The model is not in the image: mount the folder that Recommender.save_pretrained wrote.
#
#   docker build --tag semid .
#   docker run --rm --init --network none -v "$PWD/recommender:/model:ro" -v "$PWD:/data" --user "$(id -u)" semid \
#       --model /model --input histories.txt --output preds.csv --topk 10
#   docker run --rm --init --stop-timeout 30 -p 127.0.0.1:8080:8080 -e SEMID_TOKEN \
#       -v "$PWD/recommender:/model:ro" --entrypoint semid semid serve --model /model --host 0.0.0.0
#
# As it stands pip takes the torch that brings CUDA, several GB which a CPU never uses. For the small CPU build name an
# index that has it: docker build --build-arg PIP_EXTRA_INDEX_URL=...

FROM python:3.11.14-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
# what the package needs, by an empty package: a layer that changes of the code leave as it is
RUN python -m venv /opt/semid && mkdir semid_lib && touch semid_lib/__init__.py \
    && /opt/semid/bin/pip install --no-cache-dir --constraint constraints.txt ".[serve,search,embed]" \
    && /opt/semid/bin/pip uninstall --yes semid-lib && rm -r semid_lib build *.egg-info
COPY semid_lib semid_lib
RUN /opt/semid/bin/pip install --no-cache-dir --no-deps --target /opt/code .

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/semid /opt/semid
COPY --from=build /opt/code /opt/code
ENV PATH=/opt/code/bin:/opt/semid/bin:$PATH PYTHONPATH=/opt/code HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
VOLUME /model
EXPOSE 8080
ENTRYPOINT ["semid", "predict"]
CMD ["--help"]
