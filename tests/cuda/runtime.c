/* A CUDA runtime for a machine without a GPU: memory is the host's, copies from and to it are real, kernels do nothing.
 *
 * Loaded before the true one (LD_PRELOAD). torch's own CUDA code then runs as on a GPU as far as the host is concerned:
 * dispatch, checks of arguments, caching allocator, streams, pinned memory, the detector of host waits, graph capture.
 * What kernels would compute is not there: values are whatever the memory held.
 */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))

enum { LAUNCHES, COPIES, FILLS, WAITS, GRAPHS, KINDS };
static long counted[KINDS];
EXPORT long counted_calls(int kind) { return counted[kind]; }

/* A wait for the stream that is captured is an error, which spoils the capture. */
static int capturing, spoiled;
static cudaStream_t captured;
static cudaError_t waited(int for_captured) {
  counted[WAITS]++;
  if (!capturing || !for_captured) return cudaSuccess;
  spoiled = 1;
  return cudaErrorStreamCaptureUnsupported;
}

static const size_t CAPACITY = (size_t)80 << 30;

/* ---- memory: anonymous pages that cost nothing until they are touched */

#define MOST 65536
static struct block { char *start; size_t size; int pinned; } blocks[MOST];
static int used;
static size_t held;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static cudaError_t reserve(void **result, size_t size, int pinned) {
  size += !size;
  if (!pinned && held + size > CAPACITY) return cudaErrorMemoryAllocation;
  char *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return cudaErrorMemoryAllocation;
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < used && blocks[i].start) i++;
  if (i == used) used++;
  blocks[i] = (struct block){start, size, pinned};
  if (!pinned) held += size;
  pthread_mutex_unlock(&lock);
  *result = start;
  return cudaSuccess;
}

static struct block *holding(const void *address) {
  for (int i = 0; i < used; i++)
    if (blocks[i].start && (char *)address >= blocks[i].start && (char *)address < blocks[i].start + blocks[i].size)
      return &blocks[i];
  return NULL;
}

static cudaError_t release(void *address) {
  pthread_mutex_lock(&lock);
  struct block *block = address ? holding(address) : NULL;
  if (block) {
    munmap(block->start, block->size);
    if (!block->pinned) held -= block->size;
    block->start = NULL;
  }
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

static int on_device(const void *address) { struct block *block = holding(address); return block && !block->pinned; }

static cudaError_t copy(void *to, const void *from, size_t size) {
  counted[COPIES]++;
  if (!(on_device(to) && on_device(from))) memmove(to, from, size);  /* between device buffers there is nothing to keep */
  return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t n) { return reserve(p, n, 0); }
cudaError_t cudaFree(void *p) { return release(p); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { return reserve(p, n, 1); }
cudaError_t cudaFreeHost(void *p) { return release(p); }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) { *total = CAPACITY; *free = CAPACITY - held; return cudaSuccess; }
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) { cudaError_t e = waited(1); return e ? e : copy(to, from, n); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) { return copy(to, from, n); }
cudaError_t cudaMemset(void *p, int value, size_t n) { counted[FILLS]++; return cudaSuccess; }
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) { counted[FILLS]++; return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *p) {
  struct block *block = holding(p);
  memset(found, 0, sizeof *found);
  found->type = !block ? cudaMemoryTypeUnregistered : block->pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  found->devicePointer = found->hostPointer = (void *)p;
  return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) { static char room[1 << 20]; *p = room; return cudaSuccess; }

/* ---- one device, with an H100's figures */

cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char *text, int n, int device) { strncpy(text, "0000:00:00.0", n); return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0; *high = -5; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "no GPU");
  p->major = 9; p->multiProcessorCount = 132; p->warpSize = 32; p->totalGlobalMem = CAPACITY;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048; p->maxBlocksPerMultiProcessor = 32; p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->sharedMemPerBlock = 49152; p->sharedMemPerBlockOptin = 232448; p->sharedMemPerMultiprocessor = 233472;
  p->l2CacheSize = 52428800; p->unifiedAddressing = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
  switch (which) {
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    default: *value = 1;
  }
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *f) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024; found->numRegs = 32; found->ptxVersion = found->binaryVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int threads, size_t shared) { *n = 2; return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int threads, size_t shared, unsigned flags) { *n = 2; return cudaSuccess; }

/* ---- streams, events, graphs: names and nothing behind them */

static long last_name = 4096;
#define FRESH(kind) ((kind)(last_name += 16))
static unsigned long long captures;

cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = FRESH(cudaStream_t); return cudaSuccess; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { return cudaStreamCreate(s); }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { *priority = 0; return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return waited(s == captured); }
cudaError_t cudaDeviceSynchronize(void) { return waited(1); }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = FRESH(cudaEvent_t); return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return cudaEventCreate(e); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return waited(0); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
  if (id) *id = capturing ? captures : 0;
  if (graph) *graph = 0;
  if (nodes) *nodes = 0;
  if (count) *count = 0;
  return cudaStreamIsCapturing(s, status);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) { capturing = 1; captured = s; captures++; return cudaSuccess; }
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
  capturing = 0; *graph = FRESH(cudaGraph_t);
  if (!spoiled) return cudaSuccess;
  spoiled = 0;
  return cudaErrorStreamCaptureInvalidated;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long flags) { *ready = FRESH(cudaGraphExec_t); return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t s) { counted[GRAPHS]++; return cudaSuccess; }

/* ---- kernels */

cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) { counted[LAUNCHES]++; return cudaSuccess; }
cudaError_t __cudaLaunchKernel(void *f, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) { counted[LAUNCHES]++; return cudaSuccess; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *f, void **arguments) { counted[LAUNCHES]++; return cudaSuccess; }
cudaError_t __cudaGetKernel(void **kernel, const void *f) { *kernel = (void *)f; return cudaSuccess; }
static __thread struct { dim3 grid, block; size_t shared; void *stream; } pushed; /* what <<< >>> hands to the stub that it calls */
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  pushed.grid = grid; pushed.block = block; pushed.shared = shared; pushed.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = pushed.grid; *block = pushed.block; *shared = pushed.shared; *(void **)stream = pushed.stream;
  return cudaSuccess;
}
void **__cudaRegisterFatBinary(void *binary) { static void *handle; return &handle; }
const char *cudaGetErrorString(cudaError_t e) { return "no GPU"; }
const char *cudaGetErrorName(cudaError_t e) { return "no GPU"; }
int cuptiGetResultString(int result, const char **text) { *text = "no GPU"; return 0; } /* the profiler's, see conftest.py */
static int refused(void) { return cudaErrorNotSupported; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
  *f = (void *)refused;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

/* ---- what succeeds without doing anything; arguments are left alone, whatever they are */

#define NOTHING(name) EXPORT int name##_(void) __asm__(#name); int name##_(void) { return 0; }
NOTHING(__cudaInitModule) NOTHING(__cudaRegisterFatBinaryEnd) NOTHING(__cudaUnregisterFatBinary)
NOTHING(__cudaRegisterFunction) NOTHING(__cudaRegisterVar)
NOTHING(cudaGetLastError) NOTHING(cudaPeekAtLastError) NOTHING(cudaFuncSetAttribute) NOTHING(cudaKernelSetAttributeForDevice)
NOTHING(cudaEventRecord) NOTHING(cudaEventRecordWithFlags) NOTHING(cudaEventQuery) NOTHING(cudaEventDestroy)
NOTHING(cudaStreamWaitEvent) NOTHING(cudaStreamDestroy) NOTHING(cudaStreamAddCallback) NOTHING(cudaLaunchHostFunc)
NOTHING(cudaThreadExchangeStreamCaptureMode) NOTHING(cudaStreamUpdateCaptureDependencies)
NOTHING(cudaGraphDestroy) NOTHING(cudaGraphExecDestroy) NOTHING(cudaGraphDebugDotPrint)
NOTHING(cudaHostRegister) NOTHING(cudaHostUnregister) NOTHING(cudaMemcpy2DAsync) NOTHING(cudaMemcpyPeerAsync)
NOTHING(cudaDeviceEnablePeerAccess) NOTHING(cudaProfilerStart) NOTHING(cudaProfilerStop)
