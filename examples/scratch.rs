use everloop::layers::*; use everloop::*; use std::time::Instant;
fn main(){
 let a:Vec<usize>=std::env::args().skip(2).map(|x|x.parse().unwrap()).collect();
 let (b,t,i,h)=(a[0],a[1],a[2],a[3]);
 let d=Device::parse(&std::env::args().nth(1).unwrap()).unwrap();
 let mut p=Parameters::new(); let l=LstmConfig::new(i,h).declare(&mut p,"lstm",&mut Rng::new(1)).unwrap();
 let mut r=Recorder::new(&p); let x=r.input("x",&[t,b,i]).unwrap(); let o=l.record(&mut r,&x,None).unwrap().output;
 let w=r.input("t",o.shape()).unwrap(); let ls=loss::mean_squared_error(&mut r,"loss",&o,&w).unwrap(); r.backward(&ls).unwrap(); optimizer::SgdConfig::new(0.01).record(&mut r).unwrap();
 let plan=r.finish(); let n=plan.steps().len();
 let mut ws=Workspace::new(&d,plan,&p).unwrap(); ws.write(&x,&Rng::new(3).vector(x.len(),1.0)).unwrap();
 for k in 0..n { ws.run_steps(k..k+1).unwrap(); ws.finish().unwrap(); }
 for k in 0..n { let mut best=f64::MAX; for _ in 0..3{ let s=Instant::now(); ws.run_steps(k..k+1).unwrap(); ws.finish().unwrap(); best=best.min(s.elapsed().as_secs_f64()); }
  let st=&ws.plan().steps()[k]; println!("{:>10.3} ms {:8.2} GF/s {}",best*1e3, st.operation.flops()/best/1e9, st.operation.name()); }
}
