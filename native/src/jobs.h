/* The threads that do what takes a while: one syncs, some read what is not in memory. */
#ifndef BLOCKD_JOBS_H
#define BLOCKD_JOBS_H

#include "client.h"

struct bd_jobs;

/* NULL with errno. */
struct bd_jobs *bd_jobs_new(unsigned readers);

/* Do what waits, end the threads, free. */
void bd_jobs_free(struct bd_jobs *jobs);

/* Take over a job, which is malloc'ed; the client that it refers to is referenced. */
void bd_jobs_add(struct bd_jobs *jobs, struct bd_job *job);

/* Have its protocol answer the job by its status, and let the client go on that waited for it. */
void bd_job_end(struct bd_job *job);

#endif
