"""A call and an upload, for tests of how they are served."""

from __future__ import annotations

from fcp_core.protocol.protos import (
    eligibility_eval_tasks_pb2 as eligibility,
)

CHECK_IN = "/v1/eligibilityevaltasks/a%2Fb:request?%24alt=proto"
UPLOAD = "/upload/v1/media/known/upload?upload_protocol=raw"


class EligibilityEvalTasks:
    def __init__(self):
        self.requests = []
        self.answer = eligibility.EligibilityEvalTaskResponse(session_id="s1")

    async def request_eligibility_eval_task(self, request, caller):
        self.requests.append((request, caller))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def post(http, body=b"", path=CHECK_IN, **headers):
    return http.head(path, Content_Length=len(body), **headers) + body


def upload(http, body, path=UPLOAD, **headers):
    return post(http, body, path, **headers)
