// A pool of threads that run one job at a time, all of them, and meet at barriers inside it.
#pragma once

typedef struct {
    int index, count;  // this thread and how many there are
} Worker;

typedef void (*Job)(Worker worker, void *argument);

#define MAX_THREADS 64

// Run job on `count` threads, the caller being number 0, and wait for all. One job at a time in a process: a second
// caller waits for the first. Returns 0, or -1 where threads cannot be made (then nothing has run).
int run_job(int count, Job job, void *argument);

// The same on threads of another pool, for jobs without a barrier: `team` calls a function on every one of so many
// threads, as OpenMP's GOMP_parallel does. NULL: run_job.
typedef void (*Team)(void (*function)(void *), void *argument, unsigned threads, unsigned flags);
int run_on(Team team, int count, Job job, void *argument);

// Wait until every thread of the job is here.
void barrier(Worker worker);
