"""Every loss, view and optimizer on tensors of a pretended GPU: nothing is computed on two devices at once."""
import torch
from tests.pretended_gpu import *
from tests.tiny import Run, cases
from avssl.optim.build import build_optimizer
import sys, time, traceback
import pytest
mp = pytest.MonkeyPatch()
def one(case):
    run = Run(*case)
    with pretended_gpu(mp) as mode:
        moved(mode, run.loss)
        run.samples = on_gpu(mode, run.samples)
        run.optimizer = build_optimizer(run.optim, run.loss.param_groups())
        index = torch.arange(8, device="cuda")
        outputs = run.model(run.make_views(index, ()))
        result = run.loss.loss(outputs, index, run.progress)
        result.total.backward()
        run.loss.before_step(run.progress)
        run.optimizer.step()
        run.loss.update(outputs, index)
        run.loss.after_step(run.progress)
        d = run.loss.diagnostics(outputs)
        return result, d
if __name__ == "__main__":
  ok=0
  t=time.perf_counter()
  for case in cases():
    s=time.perf_counter()
    try:
        r, d = one(case)
        ok+=1
        print("ok", case, r.total.device, {str(v.device) for v in r.terms.values()}, {str(getattr(v,'device','-')) for v in d.values()}, f"{time.perf_counter()-s:.2f}", flush=True)
    except Exception as e:
        tb = traceback.extract_tb(e.__traceback__)
        own=[f for f in tb if '/speed/' in f.filename]
        print("FAIL", case, type(e).__name__, str(e)[:150].replace("\n"," "), own[-1].filename.split('/')[-1], own[-1].lineno, own[-1].line, flush=True)
  print(ok, len(cases()), time.perf_counter()-t)
