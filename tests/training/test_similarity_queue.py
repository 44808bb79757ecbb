"""The teacher's likenesses over a queue of the pictures seen last."""

import pytest
import torch
import torch.nn.functional as F

from simsearch.training.similarity_queue import SimilarityQueue


def by_hand(student, teacher, students, teachers, temperature):
    """The loss as the definition says, a picture at a time, in double precision."""
    total = 0.0
    for row in range(len(student)):
        others = [n for n in range(len(student)) if n != row]
        near = torch.cat([student[others], students]).double() @ student[row].double() / temperature
        target = torch.cat([teacher[others], teachers]).double() @ teacher[row].double() / temperature
        p = target.softmax(0)
        total += float((p * (target.log_softmax(0) - near.log_softmax(0))).sum())
    return total / len(student)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.02), (torch.float32, 1e-4)])
def test_loss_is_divergence_over_batch_and_queue(dtype, error):
    torch.manual_seed(0)
    queue = SimilarityQueue(32, 8, 6, 0.5, dtype)
    pairs = [(torch.randn(10, 8), torch.randn(10, 6)) for _ in range(3)]
    queue.add(*pairs[0])
    queue.add(*pairs[1])
    unit = [(F.normalize(a), F.normalize(b)) for a, b in pairs]
    students, teachers = (torch.cat([unit[0][n], unit[1][n]]) for n in (0, 1))
    expected = by_hand(*unit[2], students, teachers, 0.5)
    assert abs(float(queue(*pairs[2])) - expected) < error * expected
    assert queue.students.dtype == queue.teachers.dtype == dtype


def test_the_oldest_leave_the_queue():
    queue = SimilarityQueue(10, 3, 3, 0.1)
    batches = [torch.eye(3)[[n % 3] * 4] for n in range(4)]
    for batch in batches:
        queue.add(batch * 5, batch)
    assert int(queue.seen) == 16
    kept = queue.students.float()
    assert torch.equal(kept[[2, 3, 4, 5]], batches[3])  # places 12 to 15 of an endless row
    assert torch.equal(kept[[0, 1, 8, 9]], batches[2])
    assert torch.equal(queue.teachers.float(), kept)


def test_student_like_teacher_has_no_loss():
    torch.manual_seed(1)
    queue = SimilarityQueue(64, 6, 6, 0.2)
    queue.add(*(torch.randn(40, 6),) * 2)
    teacher = torch.randn(16, 6)
    assert float(queue(teacher, teacher)) < 1e-6
    student = torch.nn.Parameter(torch.randn(16, 6))
    first = float(queue(student, teacher).detach())
    optimizer = torch.optim.SGD([student], 0.5)
    for _ in range(50):
        optimizer.zero_grad()
        queue(student, teacher).backward()
        optimizer.step()
    assert float(queue(student, teacher).detach()) < first / 3


def test_a_resumed_queue_goes_on():
    torch.manual_seed(2)
    queue, other = (SimilarityQueue(16, 4, 4, 0.1) for _ in range(2))
    queue.add(torch.randn(6, 4), torch.randn(6, 4))
    other.load_state_dict(queue.state_dict())
    pair = torch.randn(5, 4), torch.randn(5, 4)
    assert float(other(*pair)) == float(queue(*pair))
